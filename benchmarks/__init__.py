"""What the product costs: scripts that print figures. Each says in its first lines how it is run."""
