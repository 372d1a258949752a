package userspace

// Surprising tells whether a message of a route makes Watch look at all of them.
var Surprising = (*Backend).surprising
