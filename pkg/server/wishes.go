package server

import "reflect"

// onlyWishes removes from doc[key] what is as it was shown and was nobody's wish
// before: clients send back whole objects, with defaults and allocated fields in
// them. Objects are looked into; so are lists of objects, by position, as long
// as none was added or removed.
func onlyWishes(doc, shown, wanted map[string]any, key string) {
	now, was, wish := doc[key], shown[key], wanted[key]
	if wish == nil && reflect.DeepEqual(now, was) {
		delete(doc, key)
		return
	}
	switch now := now.(type) {
	case map[string]any:
		below(now, was, wish)
		if wish == nil && len(now) == 0 {
			delete(doc, key)
		}
	case []any:
		was, _ := was.([]any)
		wish, _ := wish.([]any)
		if len(was) != len(now) || len(wish) != len(now) {
			return
		}
		for i := range now {
			if item, ok := now[i].(map[string]any); ok {
				below(item, was[i], wish[i])
			}
		}
	}
}

func below(now map[string]any, was, wish any) {
	shown, _ := was.(map[string]any)
	wanted, _ := wish.(map[string]any)
	for key := range now {
		onlyWishes(now, shown, wanted, key)
	}
}
