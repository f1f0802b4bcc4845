"""One replica of one shard: its rows, and the views derived from them.

`ops` says what a replica can be asked, `replica` applies and reads rows, `view` and `search` are the derived side, `host`
holds all replicas of a node and is what the cluster layer talks to.
"""
