"""The studio: one page for all runs of a folder. `orders` keeps the queue on disk and makes its runs one after another,
`gallery` lists what the folder holds, `cards` writes it as HTML, and `page` puts it on the viewer's page."""
