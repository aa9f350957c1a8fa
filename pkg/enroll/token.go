// Package enroll is the codec of enrollment tokens: what an operator hands to a
// device so that it may ask for its certificate.
//
// The parties: the server makes a token and stores its id and the sha256 of its
// secret; the operator carries the text; the device sends the secret back and
// pins the two digests. The text is "otae_" and unpadded base64url of 105
// bytes: format version 1 (1 byte), token id (8), secret (32), sha256 of the
// server's CA certificate in DER (32), sha256 of the first TUF root file (32).
//
// The threat it answers is a false server at the first contact: the CA digest
// says whom to talk to, the root digest says whose signatures to believe, so
// neither a man in the middle nor the server itself can choose another root. It
// is not the enrollment itself: expiry, counting and matching of device ids are
// the server's business.
package enroll

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
)

// Prefix starts the text of every token, so that people and secret scanners
// know it when they see it.
const Prefix = "otae_"

// The sizes of a token: raw bytes, and the length of its text.
const (
	rawSize   = 1 + 8 + 32 + 32 + 32
	TextBytes = len(Prefix) + rawSize/3*4
)

const formatVersion = 1

// ErrToken is returned by Parse for anything that is not a token.
var ErrToken = errors.New("invalid enrollment token")

// Token is one enrollment token. The zero value is not a usable token.
type Token struct {
	ID         [8]byte  // names the token in lists and logs; not secret
	Secret     [32]byte // random; the server keeps only its sha256
	CASHA256   [32]byte // of the server's root CA certificate, DER
	RootSHA256 [32]byte // of the first TUF root file, as served
}

// String returns the token's text, secret included: never log it.
func (t Token) String() string {
	raw := make([]byte, 0, rawSize)
	raw = append(raw, formatVersion)
	raw = append(raw, t.ID[:]...)
	raw = append(raw, t.Secret[:]...)
	raw = append(raw, t.CASHA256[:]...)
	raw = append(raw, t.RootSHA256[:]...)
	return Prefix + base64.RawURLEncoding.EncodeToString(raw)
}

// IDHex returns the id as the server stores and shows it.
func (t Token) IDHex() string { return hex.EncodeToString(t.ID[:]) }

// SecretSHA256 returns what the server stores of the secret.
func (t Token) SecretSHA256() [32]byte { return sha256.Sum256(t.Secret[:]) }

// Parse reads a token's text. White space around it is ignored, since tokens
// come from files and terminals; anything else that String would not have
// written is ErrToken. The error never holds the text.
func Parse(text string) (Token, error) {
	text = strings.TrimSpace(text)
	body, ok := strings.CutPrefix(text, Prefix)
	if !ok {
		return Token{}, fmt.Errorf("%w: it does not start with %s", ErrToken, Prefix)
	}
	if len(text) != TextBytes {
		return Token{}, fmt.Errorf("%w: it has %d characters, not %d; copy it whole", ErrToken, len(text), TextBytes)
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(body)
	if err != nil || len(raw) != rawSize {
		return Token{}, fmt.Errorf("%w: it holds characters that no token has", ErrToken)
	}
	if raw[0] != formatVersion {
		return Token{}, fmt.Errorf("%w: format version %d, this program reads %d", ErrToken, raw[0], formatVersion)
	}
	var t Token
	raw = raw[1:]
	for _, field := range [][]byte{t.ID[:], t.Secret[:], t.CASHA256[:], t.RootSHA256[:]} {
		raw = raw[copy(field, raw):]
	}
	return t, nil
}
