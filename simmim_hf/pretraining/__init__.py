"""What the commands `pretrain` and `adapt` do."""
