package signing

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

var cheap = kdf{n: 1 << 4, r: 1, p: 1}

func TestSealedKeyOpensOnlyForItsRoleAndPassphrase(t *testing.T) {
	k := keys(t, 1)[0]
	sealed := must(Seal(k, RoleTargets, []byte("correct horse")))(t)
	got := must(Open(sealed, RoleTargets, []byte("correct horse")))(t)
	if got.Public() != k.Public() {
		t.Error("another key came out")
	}
	if !bytes.Contains(sealed, []byte("Kdf: scrypt N=32768 r=8 p=1\n")) {
		t.Errorf("not the default cost:\n%s", sealed)
	}
	must(Open(bytes.ReplaceAll(sealed, []byte("\n"), []byte("\r\n")), RoleTargets, []byte("correct horse")))(t)
	_, err := Open(sealed, RoleTargets, []byte("correct hors"))
	wantErr(t, "wrong passphrase", err, ErrPassphrase)
	_, err = Open(sealed, RoleRoot, []byte("correct horse"))
	wantErr(t, "other role", err, ErrKeyRole)
	renamed := bytes.Replace(sealed, []byte("Role: targets"), []byte("Role: root"), 1)
	_, err = Open(renamed, RoleRoot, []byte("correct horse"))
	wantErr(t, "role renamed in the file", err, ErrPassphrase)
	if role := must(SealedRole(sealed))(t); role != RoleTargets {
		t.Errorf("role %q", role)
	}
	if p := must(SealedPublic(sealed))(t); p != k.Public() {
		t.Errorf("public key %s", p)
	}
}

func TestSealRefusesWeakArguments(t *testing.T) {
	k := keys(t, 1)[0]
	_, err := Seal(k, RoleRoot, nil)
	wantErr(t, "empty passphrase", err, ErrInvalid)
	_, err = Seal(k, "admin", []byte("x"))
	wantErr(t, "unknown role", err, ErrInvalid)
	_, err = Seal(Key{}, RoleRoot, []byte("x"))
	wantErr(t, "zero key", err, ErrInvalid)
	_, err = Key{}.Sign(nil)
	wantErr(t, "signature by the zero key", err, ErrInvalid)
}

func TestSealingTwiceGivesOtherBytes(t *testing.T) {
	k := keys(t, 1)[0]
	a := must(sealWith(cheap, k, RoleRoot, []byte("pass")))(t)
	b := must(sealWith(cheap, k, RoleRoot, []byte("pass")))(t)
	if bytes.Equal(a, b) {
		t.Error("salt and nonce repeat")
	}
}

func TestDamagedSealedKeyIsRefused(t *testing.T) {
	k := keys(t, 1)[0]
	sealed := must(sealWith(cheap, k, RoleRoot, []byte("pass")))(t)
	for i := range len(sealed) - 1 { // the last byte is a line end
		for bit := range 8 {
			bad := bytes.Clone(sealed)
			bad[i] ^= 1 << bit
			if _, err := Open(bad, RoleRoot, []byte("pass")); err == nil {
				t.Fatalf("%s was accepted", flipName(i, bit, sealed))
			}
		}
		_, err := Open(sealed[:i], RoleRoot, []byte("pass"))
		wantErr(t, fmt.Sprintf("cut to %d bytes", i), err, ErrFormat)
	}
	_, err := Open(append([]byte("junk\n"), sealed...), RoleRoot, []byte("pass"))
	wantErr(t, "text before", err, ErrFormat)
	_, err = Open(append(bytes.Clone(sealed), sealed...), RoleRoot, []byte("pass"))
	wantErr(t, "two blocks", err, ErrFormat)
}

func TestSealedKeyCannotAskForEndlessWork(t *testing.T) {
	sealed := must(sealWith(cheap, keys(t, 1)[0], RoleRoot, []byte("pass")))(t)
	for _, cost := range []kdf{
		{MaxScryptN * 2, 1, 1}, {16, MaxScryptR + 1, 1}, {16, 1, MaxScryptP + 1}, {1 << 40, 1 << 20, 1 << 20},
		{0, 1, 1}, {1, 1, 1}, {15, 1, 1}, {-16, 1, 1}, {16, 0, 1}, {16, 1, 0}, {16, -1, -1},
	} {
		bad := bytes.Replace(sealed, []byte(cheap.String()), []byte(cost.String()), 1)
		_, err := Open(bad, RoleRoot, []byte("pass"))
		wantErr(t, cost.String(), err, ErrFormat)
	}
	at := kdf{MaxScryptN, MaxScryptR, MaxScryptP}
	if got := must(parseKDF(at.String()))(t); got != at {
		t.Errorf("cost at the limit read as %s", got)
	}
}

func TestPrintingAKeyNeverShowsTheSecret(t *testing.T) {
	k := keys(t, 1)[0]
	seed := k.seed()
	hidden := struct{ inner Key }{k}
	var out strings.Builder
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%o", "%b", "%c", "%U", "%t"} {
		for _, v := range []any{k, &k, RootKey{k}, TargetsKey{k}, Online{Snapshot: OnlineKey{k}}, []Key{k}, map[string]Key{"a": k}, hidden, &hidden} {
			fmt.Fprintf(&out, verb+"\n", v)
		}
	}
	for _, h := range []slog.Handler{slog.NewTextHandler(&out, nil), slog.NewJSONHandler(&out, nil)} {
		slog.New(h).Info("key", "key", k, "root", RootKey{k}, "hidden", hidden)
	}
	js := must(json.Marshal([]any{k, RootKey{k}, hidden}))(t)
	out.Write(js)
	text := out.String()
	for form, secret := range map[string]string{
		"hex": hex.EncodeToString(seed[:8]), "HEX": strings.ToUpper(hex.EncodeToString(seed[:8])),
		"base64": base64.StdEncoding.EncodeToString(seed[:])[:12], "raw": string(seed[:8]),
		"list": strings.Trim(fmt.Sprint(seed[:6]), "[]"), "go": strings.TrimSuffix(strings.TrimPrefix(fmt.Sprintf("%#v", seed[:6]), "[]byte{"), "}"),
	} {
		if strings.Contains(text, secret) {
			t.Errorf("the secret is printed as %s", form)
		}
	}
	if !strings.Contains(text, k.Public().String()) {
		t.Error("a key prints without its public half")
	}
}

func TestPublicKeyText(t *testing.T) {
	p := keys(t, 1)[0].Public()
	var q PublicKey
	noErr(t, q.UnmarshalText([]byte(p.String())))
	if p != q || len(p.ID()) != 64 {
		t.Errorf("%s came back as %s", p, q)
	}
	for _, bad := range []string{"", "ed25519:", p.String()[8:], p.String() + "\n", "rsa" + p.String(), PublicKey{}.String(), p.String()[:40], strings.Replace(p.String(), "=", "", 1)} {
		wantErr(t, bad, q.UnmarshalText([]byte(bad)), ErrFormat)
	}
	// Key ids are those of the TUF specification's canonical form, so that
	// other TUF tools name our keys alike.
	fixed := PublicKey{raw: [32]byte{0: 1, 31: 2}}
	if want := "b475f91ed0a5845d2365f495068e1aac1041ae396d63b1c18f1700d963402e3a"; fixed.ID() != want {
		t.Errorf("key id %s, want %s", fixed.ID(), want)
	}
}
