"""Files that follow from a bundle's base files and are alike in every bundle, made from one place.

``python -m tools.boilerplate`` writes them into each bundle, where they are committed: a bundle is whole without this
tool. What they have in common stands in ``templates/``; the rest is read from the base files beside them.
"""
