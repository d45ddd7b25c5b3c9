"""The atlas over HTTP: one app, under uvicorn on one machine or under Ray Serve on several."""
