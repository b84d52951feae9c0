"""What travels with a checkpoint: imports its neighbours, torch and transformers only."""
