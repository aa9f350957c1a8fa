package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// replace makes the merge patch from one object to another: null removes.
func replace(old, wanted map[string]any) map[string]any {
	patch := map[string]any{}
	for k := range old {
		if _, keep := wanted[k]; !keep {
			patch[k] = nil
		}
	}
	for k, v := range wanted {
		oldObject, wasObject := old[k].(map[string]any)
		newObject, isObject := v.(map[string]any)
		if wasObject && isObject {
			v = replace(oldObject, newObject)
		}
		patch[k] = v
	}
	return patch
}

// parseChanges reads k=v and k- into a merge patch.
func parseChanges(words []string) (map[string]any, error) {
	patch := map[string]any{}
	for _, word := range words {
		key, text, set := strings.Cut(word, "=")
		var value any
		if set {
			value = parseValue(text)
		} else if key, set = strings.CutSuffix(word, "-"); !set {
			return nil, usage("change %q: write k=v to set or k- to remove", word)
		}
		if err := put(patch, strings.Split(key, "."), value); err != nil {
			return nil, usage("change %q: %w", word, err)
		}
	}
	return patch, nil
}

// parseValue reads JSON, and takes what is not JSON as a string.
func parseValue(text string) any {
	var v any
	if decodeNumbers([]byte(text), &v) != nil {
		return text
	}
	return v
}

// put sets a value under a path and makes the objects on the way.
func put(m map[string]any, path []string, value any) error {
	for i, key := range path {
		if key == "" {
			return errors.New("a part of the key is empty")
		}
		old, taken := m[key]
		if i == len(path)-1 {
			if taken {
				return fmt.Errorf("%s is changed twice", strings.Join(path, "."))
			}
			m[key] = value
			return nil
		}
		if !taken {
			old = map[string]any{}
			m[key] = old
		}
		child, ok := old.(map[string]any)
		if !ok {
			return fmt.Errorf("%s is set to a value already", strings.Join(path[:i+1], "."))
		}
		m = child
	}
	return nil
}

// shadowUpdate is the request body; version 0 asks for none in particular.
func shadowUpdate(desired map[string]any, version int64) []byte {
	update := map[string]any{"state": map[string]any{"desired": desired}}
	if version != 0 {
		update["version"] = version
	}
	raw, _ := json.Marshal(update) // maps of decoded JSON always encode
	return raw
}
