"""What is done with the paper and its data: the commands of ``unihpe``, and what they lift, draw and export."""
