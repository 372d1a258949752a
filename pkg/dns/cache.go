package dns

import (
	"container/list"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	maxPositiveTTL = time.Hour
	maxNegativeTTL = 5 * time.Minute // RFC 2308 section 5 allows up to three hours
	failureTTL     = time.Second     // RFC 9520 section 3.2: at least one second
)

// query is a question to the resolvers and the key of what they said. The two
// bits ask for other answers: with signatures, and unchecked.
type query struct {
	name   string // in lower case
	qtype  uint16
	do, cd bool
}

// cache keeps answers up to a number of octets, and throws the one away that
// was not asked for the longest. Nothing is served beyond its TTL.
type cache struct {
	now func() time.Time
	max int

	mu      sync.Mutex
	size    int
	used    *list.List // of *cached, the most recently used in front
	entries map[query]*list.Element
}

type cached struct {
	key             query
	msg             *dns.Msg
	size            int
	stored, expires time.Time
}

func newCache(maxBytes int, now func() time.Time) *cache {
	return &cache{now: now, max: maxBytes, used: list.New(), entries: map[query]*list.Element{}}
}

// get returns a copy with the TTLs that are left, or nil.
func (c *cache) get(k query) *dns.Msg {
	now := c.now()
	c.mu.Lock()
	el := c.entries[k]
	if el == nil {
		c.mu.Unlock()
		return nil
	}
	e := el.Value.(*cached)
	if !now.Before(e.expires) {
		c.remove(el)
		c.mu.Unlock()
		return nil
	}
	c.used.MoveToFront(el)
	c.mu.Unlock()

	msg := e.msg.Copy() // what is in the cache never changes
	age := uint32(max(0, now.Sub(e.stored)) / time.Second)
	for _, section := range [][]dns.RR{msg.Answer, msg.Ns, msg.Extra} {
		for _, rr := range section {
			h := rr.Header()
			h.Ttl -= min(h.Ttl, age)
		}
	}
	return msg
}

// put keeps a message that nobody changes any more, if it may be kept.
func (c *cache) put(k query, msg *dns.Msg) {
	ttl := lifetime(msg, k.qtype)
	// An entry's own cost: the list, the map and the records' pointers.
	size := msg.Len() + len(k.name) + 200
	if ttl <= 0 || size > c.max {
		return
	}
	now := c.now()
	c.mu.Lock()
	defer c.mu.Unlock()
	if el := c.entries[k]; el != nil {
		c.remove(el)
	}
	c.entries[k] = c.used.PushFront(&cached{key: k, msg: msg, size: size, stored: now, expires: now.Add(ttl)})
	c.size += size
	for c.size > c.max {
		c.remove(c.used.Back())
	}
}

func (c *cache) remove(el *list.Element) {
	e := c.used.Remove(el).(*cached)
	delete(c.entries, e.key)
	c.size -= e.size
}

// lifetime says how long msg may be kept, and shortens the TTLs in it that are
// longer than that.
func lifetime(msg *dns.Msg, qtype uint16) time.Duration {
	limit := maxPositiveTTL
	switch {
	case msg.Rcode != dns.RcodeSuccess && msg.Rcode != dns.RcodeNameError:
		return failureTTL
	case msg.Rcode == dns.RcodeNameError || !hasType(msg.Answer, qtype):
		limit = negativeLimit(msg.Ns)
	}
	ttl := uint32(limit / time.Second)
	for _, section := range [][]dns.RR{msg.Answer, msg.Ns, msg.Extra} {
		for _, rr := range section {
			if h := rr.Header(); h.Ttl >= 1<<31 { // RFC 2181 section 8
				h.Ttl = 0
			}
		}
	}
	for _, section := range [][]dns.RR{msg.Answer, msg.Ns} {
		for _, rr := range section {
			ttl = min(ttl, rr.Header().Ttl)
		}
	}
	for _, section := range [][]dns.RR{msg.Answer, msg.Ns, msg.Extra} {
		for _, rr := range section {
			rr.Header().Ttl = min(rr.Header().Ttl, uint32(limit/time.Second))
		}
	}
	return time.Duration(ttl) * time.Second
}

// negativeLimit is RFC 2308 section 5: the SOA's minimum, and no SOA, no cache.
func negativeLimit(authority []dns.RR) time.Duration {
	for _, rr := range authority {
		if soa, ok := rr.(*dns.SOA); ok {
			return min(maxNegativeTTL, time.Duration(soa.Minttl)*time.Second)
		}
	}
	return 0
}

func hasType(rrs []dns.RR, t uint16) bool {
	for _, rr := range rrs {
		if rr.Header().Rrtype == t {
			return true
		}
	}
	return false
}
