"""Several servers behind one address, on Ray Serve. Only this folder imports Ray.

In: requests as a server gets them. Out: replies of the replica that a request was passed to. Which replica has
computed which prefix, the ``AffinityTable``, is written by the router; everything else of a request by its replica.
"""
