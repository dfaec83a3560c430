"""What a key may do: one table, and the one runner through which every call goes."""
