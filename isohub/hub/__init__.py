"""From a name to files on disk: resolve a `RepoRef` to a commit, fetch it once, keep it in the cache.

::

    RepoRef -> resolve.resolve -> Resolved -> fetch.fetch -> Checkout
                  |                              |-- cache.Cache: one folder a commit, whole or not there
                  +------- hosts.host_of --------+   (tree: what is done to a tree of files; scratch: folders
                                |                     that do not outlive their maker)
                               git.run
"""
