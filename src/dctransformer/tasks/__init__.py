"""The tasks for users, one function each: generate, edit, score and describe."""
