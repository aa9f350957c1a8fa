package enroll

import (
	"crypto/sha256"
	"errors"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func sample() Token {
	t := Token{}
	for i := range t.Secret {
		t.Secret[i] = byte(i)
		t.CASHA256[i] = byte(100 + i)
		t.RootSHA256[i] = byte(200 + i)
	}
	copy(t.ID[:], "\xff\xfe\xfdabcde")
	return t
}

// The text is a contract between three programs: a change of layout must fail.
func TestTokenText(t *testing.T) {
	const want = "otae_Af_-_WFiY2RlAAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh9kZWZnaGlqa2xtbm9wcXJzdHV2d3h5ent8fX5_gIGCg8jJysvMzc7P0NHS09TV1tfY2drb3N3e3-Dh4uPk5ebn"
	if got := sample().String(); got != want {
		t.Errorf("text %s", got)
	}
	if len(want) != TextBytes {
		t.Errorf("text has %d characters, TextBytes says %d", len(want), TextBytes)
	}
	if got := sample().IDHex(); got != "fffefd6162636465" {
		t.Errorf("id %s", got)
	}
	secret := sample().Secret
	if got := sample().SecretSHA256(); got != sha256.Sum256(secret[:]) {
		t.Errorf("secret hash %x", got)
	}
}

func TestParseReturnsWhatWasWritten(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		raw := rapid.SliceOfN(rapid.Byte(), 104, 104).Draw(t, "raw")
		var tok Token
		copy(tok.ID[:], raw[:8])
		copy(tok.Secret[:], raw[8:40])
		copy(tok.CASHA256[:], raw[40:72])
		copy(tok.RootSHA256[:], raw[72:])
		back, err := Parse(" " + tok.String() + "\n")
		if err != nil || back != tok {
			t.Fatalf("%v, %v", back, err)
		}
	})
}

func TestParseRefuses(t *testing.T) {
	good := sample().String()
	for name, text := range map[string]string{
		"empty":            "",
		"prefix only":      Prefix,
		"other prefix":     "otat_" + good[len(Prefix):],
		"upper prefix":     "OTAE_" + good[len(Prefix):],
		"one short":        good[:len(good)-1],
		"one long":         good + "A",
		"padded":           good[:len(good)-1] + "=",
		"std alphabet":     strings.Replace(good, "_-", "/+", 1),
		"line break":       good[:40] + "\n" + good[41:],
		"version 2":        Prefix + "Ag" + good[len(Prefix)+2:],
		"version 0":        Prefix + "AA" + good[len(Prefix)+2:],
		"two tokens":       good + " " + good,
		"not ascii":        good[:40] + "é" + good[42:],
		"nul in the midst": good[:40] + "\x00" + good[41:],
	} {
		_, err := Parse(text)
		if !errors.Is(err, ErrToken) {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if len(text) > 60 && strings.Contains(err.Error(), text[30:50]) {
			t.Errorf("%s: the error shows the secret: %v", name, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(sample().String())
	f.Add(Prefix)
	f.Add(" \n" + sample().String() + "\t")
	f.Fuzz(func(t *testing.T, text string) {
		tok, err := Parse(text)
		if err != nil {
			return
		}
		if got := tok.String(); got != strings.TrimSpace(text) {
			t.Fatalf("parsed %q, wrote %q", text, got)
		}
	})
}
