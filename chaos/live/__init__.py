"""Live chaos: real nodes in processes of their own, real faults, a recorded history, and checkers over it. HTTP only."""
