"""Each module adds one thing from outside of the package, as anyone may: the examples of CONTRIBUTING."""
