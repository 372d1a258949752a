package proxy

import "time"

// bucket lets through what it holds at once, and then as much as flows in.
type bucket struct {
	left, limit, perSecond float64
	debt                   float64 // what is taken too much, at most
	at                     time.Time
}

func newBucket(limit, debt, perSecond float64) bucket {
	return bucket{left: limit, limit: limit, debt: debt, perSecond: perSecond}
}

// wait is how long until there is that much.
func (b *bucket) wait(now time.Time, want float64) time.Duration {
	b.fill(now)
	if b.left >= want {
		return 0
	}
	return time.Duration((want - b.left) / b.perSecond * float64(time.Second))
}

// take may leave a debt.
func (b *bucket) take(now time.Time, n float64) {
	b.fill(now)
	b.left = max(b.left-n, -b.debt)
}

func (b *bucket) fill(now time.Time) {
	if !b.at.IsZero() {
		b.left = min(b.limit, b.left+now.Sub(b.at).Seconds()*b.perSecond)
	}
	b.at = now
}
