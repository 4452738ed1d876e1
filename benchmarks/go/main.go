// The same requests by Go's net/http, over keep-alive, with its JSON parser.
// Prints CPU seconds and wall seconds. Usage: loop URL-up-to-the-id REQUESTS CONCURRENCY
package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

type answer struct {
	CodeResponse string
	CodeResult   string
}

func ask(client *http.Client, url string) {
	response, err := client.Get(url)
	if err != nil {
		panic(err)
	}
	defer response.Body.Close()
	var found answer
	if err := json.NewDecoder(response.Body).Decode(&found); err != nil {
		panic(err)
	}
	if found.CodeResponse == "" && found.CodeResult == "" {
		panic("no result code")
	}
}

func run(client *http.Client, base string, first, requests int64, workers int) {
	next := first - 1
	var done sync.WaitGroup
	for worker := 0; worker < workers; worker++ {
		done.Add(1)
		go func() {
			defer done.Done()
			for number := atomic.AddInt64(&next, 1); number < first+requests; number = atomic.AddInt64(&next, 1) {
				ask(client, fmt.Sprintf("%s%036d", base, number))
			}
		}()
	}
	done.Wait()
}

func cpu() float64 {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		panic(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano()).Seconds()
}

func main() {
	requests, _ := strconv.ParseInt(os.Args[2], 10, 64)
	workers, _ := strconv.Atoi(os.Args[3])
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: workers}}
	run(client, os.Args[1], 1e9, 1000, workers)
	began, before := time.Now(), cpu()
	run(client, os.Args[1], 0, requests, workers)
	fmt.Println(cpu()-before, time.Since(began).Seconds())
}
