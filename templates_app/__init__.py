"""What we say: the contract of every text, the default texts, and the sandbox that turns a template into a message."""
