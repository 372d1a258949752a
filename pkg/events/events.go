// Package events keeps the node's recent core/v1 Events, deduplicated with
// counts, for `nodeagent get events`, `describe` and the local API.
package events
