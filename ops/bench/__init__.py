"""`make bench`: a real node over HTTP beside chromadb's real server, the same work in turns, in the same run."""
