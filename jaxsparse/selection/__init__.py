"""The k best scores, exactly and without sorting.

`top_k` is the entry: it turns scores and counts into masks. It calls a compiled kernel (`compiled`)
or bisects in XLA (`bisection`, which narrows `brackets` and cuts `ties`); both find the same masks.
`best_of_group` keeps n of every m.
"""
