"""Recurrent nets whose recurrent matrix is orthogonal before it is quantised (QORNN, arXiv 2402.04012).

One algorithm per file; nothing here knows of the compiler. The steps are those of ``kernels/recurrence.py``.
"""
