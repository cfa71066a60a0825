#include "parallel.h"

#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace gscfd {
namespace {

struct Job {
    RangeFunction function;
    void* context;
    int64_t n, grain;
    std::atomic<int64_t> next{0};

    void work() {
        for (;;) {
            const int64_t begin = next.fetch_add(grain, std::memory_order_relaxed);
            if (begin >= n) return;
            function(context, begin, begin + grain < n ? begin + grain : n);
        }
    }
};

thread_local bool inside_job = false;

class Pool {
  public:
    // Runs the job on the calling thread and at most `helpers` workers.
    void run(Job& job, int helpers) {
        std::lock_guard<std::mutex> one_job_at_a_time(submit_);
        while (int(workers_.size()) < helpers) workers_.emplace_back([this] { serve(); });
        {
            std::lock_guard<std::mutex> lock(mutex_);
            job_ = &job;
            seats_ = helpers;
        }
        wake_.notify_all();
        inside_job = true;
        job.work();
        inside_job = false;
        std::unique_lock<std::mutex> lock(mutex_);
        job_ = nullptr;
        idle_.wait(lock, [this] { return busy_ == 0; });
    }

  private:
    void serve() {
        inside_job = true;
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            wake_.wait(lock, [this] { return job_ != nullptr && seats_ > 0; });
            Job* job = job_;
            --seats_;
            ++busy_;
            lock.unlock();
            job->work();
            lock.lock();
            if (--busy_ == 0) idle_.notify_one();
        }
    }

    std::mutex submit_, mutex_;
    std::condition_variable wake_, idle_;
    std::vector<std::thread> workers_;
    Job* job_ = nullptr;
    int seats_ = 0, busy_ = 0;
};

// The pool of this process. A forked child inherits none of its parent's threads and makes its own pool. Pools are
// never destroyed: their workers sleep until the process ends.
Pool& pool() {
    static std::mutex mutex;
    static Pool* current = nullptr;
    static pid_t owner = 0;
    std::lock_guard<std::mutex> lock(mutex);
    if (current == nullptr || owner != getpid()) {
        current = new Pool;
        owner = getpid();
    }
    return *current;
}

}  // namespace

void parallel_ranges(int threads, int64_t n, int64_t grain, RangeFunction function, void* context) {
    if (n <= 0) return;
    if (grain < 1) grain = 1;
    const int64_t pieces = (n + grain - 1) / grain;
    if (threads > pieces) threads = int(pieces);
    Job job{function, context, n, grain};
    if (threads <= 1 || inside_job) {
        job.work();
        return;
    }
    pool().run(job, threads - 1);
}

}  // namespace gscfd
