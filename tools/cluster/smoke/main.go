// Command smoke is what the pods of the cluster's smoke test run.
package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"time"
)

func main() {
	log.SetFlags(0)
	if len(os.Args) < 2 {
		log.Fatal("usage: smoke serve | get <url> | cat <file> | redirect | webhook | csi")
	}
	if err := run(os.Args[1], os.Args[2:]); err != nil {
		log.Fatal("smoke: ", err)
	}
}

func run(verb string, args []string) error {
	switch {
	case verb == "serve":
		return serve()
	case verb == "get" && len(args) == 1:
		return get(args[0])
	case verb == "cat" && len(args) == 1:
		content, err := os.ReadFile(args[0])
		fmt.Print(string(content))
		return err
	case verb == "redirect":
		return redirect(80, 8080)
	case verb == "webhook":
		return webhook("/certs")
	case verb == "csi":
		return csiDriver()
	}
	return fmt.Errorf("unknown command %q", verb)
}

// serve answers with who answers and who asked.
func serve() error {
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	log.Println("serving as", host)
	return http.ListenAndServe(":8080", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s to %s\n", host, r.RemoteAddr)
	}))
}

func get(url string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	_, err = io.Copy(os.Stdout, response.Body)
	return err
}
