// Package images decides when an image is pulled, with which credentials, how
// often and how many at once, and what users see of it meanwhile.
package images

import "time"

// The waiting reasons, as kubelet spells them.
const (
	ReasonPulling       = "Pulling"
	ReasonErrImagePull  = "ErrImagePull"
	ReasonBackOff       = "ImagePullBackOff"
	ReasonNeverPull     = "ErrImageNeverPull"
	ReasonInvalidName   = "InvalidImageName"
	ReasonInspectFailed = "ImageInspectError"
)

// State is how far one container's image is. It is a value; ask again for news.
type State struct {
	// Ready says that the image is on the node: Ref is what to hand to the
	// runtime, ID the image's id.
	Ready   bool
	Ref, ID string
	// Reason and Message while it is not ready: what the container waits for.
	Reason, Message string
	// RetryAt is when asking again may help: a failed pull is tried again, or the
	// image may have come by other ways. Zero while a pull is running (Wake says
	// when that has ended) and for a name that will never be one.
	RetryAt  time.Time
	Progress Progress
}

// Progress of a running pull, in bytes; Total is 0 while unknown.
type Progress struct {
	Ref     string    `json:"ref"`
	Done    int64     `json:"done"`
	Total   int64     `json:"total"`
	Started time.Time `json:"started,omitzero"` // zero: it waits for a place
}
