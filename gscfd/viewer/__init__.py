"""The browser page. `content` computes the data to show and `controls` holds requests; `display` and `panel` put them
on a viser page; `live` shows a run in progress and `saved` shows saved results."""
