"""What users ask for, one function each: generate, edit, score and describe."""
