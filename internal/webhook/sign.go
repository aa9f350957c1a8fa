package webhook

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"strings"
	"time"
)

// Names of the headers ("Webhook headers").
const (
	headerID        = "webhook-id"
	headerTimestamp = "webhook-timestamp"
	headerSignature = "webhook-signature"
)

// signature is one signature of a message, by its id, its time in whole seconds and
// its body, byte for byte ("Signature scheme"; v1 is HMAC-SHA256).
func signature(secret []byte, id string, at time.Time, body []byte) string {
	m := hmac.New(sha256.New, secret)
	fmt.Fprintf(m, "%s.%d.", id, at.Unix())
	m.Write(body)
	return "v1," + base64.StdEncoding.EncodeToString(m.Sum(nil))
}

// signatures is one by each secret, so that a receiver that knows either is served
// while they change.
func signatures(secrets [][]byte, id string, at time.Time, body []byte) string {
	list := make([]string, len(secrets))
	for i, secret := range secrets {
		list[i] = signature(secret, id, at, body)
	}
	return strings.Join(list, " ")
}
