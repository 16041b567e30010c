"""Several servers behind one address, on Ray Serve. Only this folder imports Ray."""
