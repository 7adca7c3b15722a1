"""Pages for people who answer: the signed page, the sandbox, a page of one's own, and signing in."""
