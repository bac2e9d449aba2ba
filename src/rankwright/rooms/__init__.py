"""The rooms of an experiment. Each takes values in, gives values out, and knows no other room, file or order."""
