"use strict";

// `Try it out` calls this API with the credential of `Authorize`, which the page forgets with its tab.
SwaggerUIBundle({
  dom_id: "#swagger-ui",
  url: "openapi.json",
  deepLinking: true,
  docExpansion: "none",
  filter: true,
  showExtensions: true,
  validatorUrl: null, // else the page would tell another host of this one
});
