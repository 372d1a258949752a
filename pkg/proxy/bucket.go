package proxy

import "time"

// bucket lets through what it holds at once, and then as much as flows in.
type bucket struct {
	left, limit, perSecond float64
	at                     time.Time
}

func newBucket(limit, perSecond float64) bucket {
	return bucket{left: limit, limit: limit, perSecond: perSecond}
}

// wait is how long until there is that much.
func (b *bucket) wait(now time.Time, want float64) time.Duration {
	if !b.at.IsZero() {
		b.left = min(b.limit, b.left+now.Sub(b.at).Seconds()*b.perSecond)
	}
	b.at = now
	if b.left >= want {
		return 0
	}
	return time.Duration((want - b.left) / b.perSecond * float64(time.Second))
}

// take may leave a debt.
func (b *bucket) take(n float64) { b.left -= n }
