"""The page in the browser. `content` says what is shown, `controls` what is asked; `display` and `panel` put them on a
viser page; `live` shows a run while it goes on, and `saved` what runs have left."""
