package sample

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/spf13/cobra"
)

// Issuer returns the subcommand that issues tokens, as an identity provider does, to whoever asks, and publishes its keys: /token signs the claims of the request's body,
// to which iss, and exp in an hour, are added; /.well-known/openid-configuration and /keys are what those who verify ask for; /rotate signs by another
// key from now on, whose set has the former, too, unless ?forget=true; /down?for=10s has it publish nothing for a while; /asked says how often its keys were asked for.
func Issuer() *cobra.Command {
	var address, name string
	cmd := &cobra.Command{Use: "issuer", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		i := &issuer{name: name}
		if err := i.rotate(false); err != nil {
			return err
		}
		mux := http.NewServeMux()
		mux.HandleFunc("/.well-known/openid-configuration", i.published(func() any { return map[string]string{"issuer": name, "jwks_uri": name + "/keys"} }))
		mux.HandleFunc("/keys", i.published(func() any { i.asked++; return i.set() }))
		mux.HandleFunc("POST /token", i.token)
		mux.HandleFunc("POST /rotate", func(w http.ResponseWriter, r *http.Request) {
			if err := i.rotate(r.URL.Query().Get("forget") == "true"); err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
			}
		})
		mux.HandleFunc("POST /down", func(w http.ResponseWriter, r *http.Request) {
			d, err := time.ParseDuration(r.URL.Query().Get("for"))
			if err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
			i.mu.Lock()
			defer i.mu.Unlock()
			i.down = time.Now().Add(d)
		})
		mux.HandleFunc("/asked", func(w http.ResponseWriter, _ *http.Request) {
			i.mu.Lock()
			defer i.mu.Unlock()
			fmt.Fprint(w, i.asked)
		})
		mux.HandleFunc("/healthz", func(http.ResponseWriter, *http.Request) {})
		srv := &http.Server{Addr: address, Handler: mux, ReadHeaderTimeout: requestTimeout}
		ended := make(chan error, 1)
		go func() { ended <- srv.ListenAndServe() }()
		select {
		case err := <-ended:
			return fmt.Errorf("serving at %s: %w", address, err)
		case <-cmd.Context().Done():
			return srv.Close()
		}
	}}
	cmd.Flags().StringVar(&address, "listen", ":8080", "HTTP address")
	cmd.Flags().StringVar(&name, "name", "", "the issuer: the URL by which those who verify reach it")
	return cmd
}

// issuer has the keys, the one that signs last.
type issuer struct {
	name  string
	mu    sync.Mutex
	keys  []jose.JSONWebKey
	down  time.Time // until when it publishes nothing
	asked int
}

func (i *issuer) rotate(forget bool) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if forget {
		i.keys = nil
	}
	i.keys = append(i.keys, jose.JSONWebKey{Key: key, KeyID: rand.Text(), Algorithm: string(jose.ES256), Use: "sig"})
	return nil
}

func (i *issuer) set() (out jose.JSONWebKeySet) {
	for _, k := range i.keys {
		out.Keys = append(out.Keys, k.Public())
	}
	return out
}

func (i *issuer) published(what func() any) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		i.mu.Lock()
		defer i.mu.Unlock()
		if time.Now().Before(i.down) {
			http.Error(w, "down", http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(what())
	}
}

func (i *issuer) token(w http.ResponseWriter, r *http.Request) {
	claims := map[string]any{}
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<16)).Decode(&claims); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	for name, value := range map[string]any{"iss": i.name, "exp": time.Now().Add(time.Hour).Unix()} {
		if _, said := claims[name]; !said {
			claims[name] = value
		}
	}
	i.mu.Lock()
	key := i.keys[len(i.keys)-1]
	i.mu.Unlock()
	text, err := sign(key, claims)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	fmt.Fprint(w, text)
}

func sign(key jose.JSONWebKey, claims map[string]any) (string, error) {
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: key}, nil)
	if err != nil {
		return "", err
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		return "", err
	}
	signed, err := signer.Sign(payload)
	if err != nil {
		return "", err
	}
	return signed.CompactSerialize()
}
