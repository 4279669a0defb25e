"""The commands of ``unihpe``, and what they lift, draw and export."""
