"""From a name to files on disk: resolve a `RepoRef` to a commit, fetch it once, keep it in the cache.

::

    RepoRef -> resolve.resolve -> Resolved -> fetch.fetch -> Checkout
                  |     |                        |-- cache.Cache: one folder a commit, whole or not there
                  |     +-- ref_memory           |   (tree: what is done to a tree of files; scratch: folders
                  |                              |   that do not outlive their maker)
                  +------- hosts.host_of --------+
                     |                     |
        https_host: refs and archives    git_hosts: this machine, ssh
          http (tokens, refusals),         git_checkout (submodules, Git LFS)
          advertisement, archive           git.run
"""
