"""Two or more versions of a model on the same inputs: what differs, does it matter, which commit did it.

::

    refs ──> versions: a worker each ──> the same inputs through all at once ──> outputs, layers, gradients ──┐
                  └──> state dicts, structure, code, speed, memory ────────────────────────────────────────────┴──>
    Comparison ──> terminal | markdown | html | json,  fail_on ──> reasons,  history ──> Bisection

`isohub.compare` and `isohub.bisect` are bound to `run` and `bisect` here. The package is not called `compare`,
since an imported module of that name would hide the function.
"""
