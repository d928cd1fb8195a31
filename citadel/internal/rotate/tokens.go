package rotate

import (
	"time"

	"github.com/bulwark-mesh/bulwark/citadel/internal/ca"
)

// Times of a key for JWT-SVIDs. It is published before it signs, for verifiers that fetch the bundle now and then, and
// after it last signed for longer than the longest token (an hour) lives.
const (
	tokenKeySigns   = 24 * time.Hour
	tokenKeyAhead   = time.Hour
	tokenKeyLingers = 2 * time.Hour
)

// RotateTokens returns the keys for JWT-SVIDs as they should be at a time, and whether that is a change.
func RotateTokens(keys []ca.TokenKey, now time.Time, fresh func(time.Time) (ca.TokenKey, error)) ([]ca.TokenKey, bool, error) {
	changed := false
	if len(keys) == 0 || !now.Before(keys[len(keys)-1].Created.Add(tokenKeySigns)) {
		key, err := fresh(now)
		if err != nil {
			return keys, false, err
		}
		keys, changed = append(keys[:len(keys):len(keys)], key), true
	}
	for len(keys) > 1 && !now.Before(keys[1].Created.Add(tokenKeyAhead+tokenKeyLingers)) {
		keys, changed = keys[1:], true
	}
	return keys, changed, nil
}

// TokenKeysAt says which of the keys signs at a time: the newest that has been published for long enough, else the
// oldest there is.
func TokenKeysAt(keys []ca.TokenKey, now time.Time) *ca.TokenKeys {
	if len(keys) == 0 {
		return nil
	}
	out := &ca.TokenKeys{Signer: keys[0], Published: keys}
	for _, k := range keys[1:] {
		if !now.Before(k.Created.Add(tokenKeyAhead)) {
			out.Signer = k
		}
	}
	return out
}
