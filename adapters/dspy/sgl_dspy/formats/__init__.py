"""What a prompt and a reply look like: output fields as steps of a ``ReplyProgram``, and prompts that begin with what they share."""
