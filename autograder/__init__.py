"""The autograder: hidden tests in a trusted process, submissions in a jail, only plain data between them."""
