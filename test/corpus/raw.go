package corpus

import (
	"bytes"
	"encoding/json"
)

// Keys that end in these are written twice: with the same value, or with
// another one first. A Go map cannot say so.
const (
	twice      = "\u2063twice"
	twiceOther = "\u2063other"
)

// encode writes a manifest as JSON, in the same way every time.
func encode(o Object) []byte {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(doubled(o)); err != nil {
		// A corpus is made of what JSON can hold.
		panic(err)
	}
	data := bytes.TrimSpace(b.Bytes())
	data = bytes.ReplaceAll(data, []byte(twice+`":`), []byte(`":`))
	return bytes.ReplaceAll(data, []byte(twiceOther+`":`), []byte(`":`))
}

// doubled adds the plain key beside each key that is to be there twice.
func doubled(v any) any {
	switch v := v.(type) {
	case Object:
		c := make(Object, len(v))
		for k, e := range v {
			e = doubled(e)
			c[k] = e
			if name, ok := bytes.CutSuffix([]byte(k), []byte(twice)); ok {
				c[string(name)] = e
			}
			if name, ok := bytes.CutSuffix([]byte(k), []byte(twiceOther)); ok {
				c[string(name)] = nil
			}
		}
		return c
	case []any:
		c := make([]any, len(v))
		for i, e := range v {
			c[i] = doubled(e)
		}
		return c
	default:
		return v
	}
}
