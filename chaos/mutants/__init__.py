"""Known bugs, re-planted one at a time: a checker that catches none of them is not a checker."""
