"""Many runs side by side.

``folder`` plans and reads the sub-folders of the jobs, ``compare`` makes a row of each job, ``table`` prints the
rows, ``profile_figure`` and ``outcome_figure`` draw them in ``panels``, ``page`` writes report.html, and ``report``
calls them all.
"""
