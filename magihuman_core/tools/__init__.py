"""What is done with weight files besides loading: explaining and converting them."""
