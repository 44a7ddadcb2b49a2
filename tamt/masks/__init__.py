"""What a ticket is: masks, the files that hold them, and zeros that stay."""
