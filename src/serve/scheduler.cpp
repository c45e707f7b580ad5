#include "serve/scheduler.h"

#include <algorithm>
#include <utility>

#include "quaver/error.h"

namespace quaver {

std::vector<Completion::Delivery> Completion::wait_until(std::chrono::steady_clock::time_point deadline) {
  std::unique_lock lock(mutex_);
  arrived_.wait_until(lock, deadline, [&] { return !deliveries_.empty(); });
  return std::exchange(deliveries_, {});
}

void Completion::end(std::size_t text) {
  const std::lock_guard lock(mutex_);
  wanted_.at(text) = false;
}

void Completion::cancel() {
  const std::lock_guard lock(mutex_);
  std::fill(wanted_.begin(), wanted_.end(), false);
}

void Completion::deliver(Delivery delivery) {
  const std::lock_guard lock(mutex_);
  if (!wanted_[delivery.text]) return;
  deliveries_.push_back(std::move(delivery));
  arrived_.notify_all();
}

bool Completion::wanted(std::size_t text) {
  const std::lock_guard lock(mutex_);
  return wanted_[text];
}

Scheduler::Scheduler(LanguageModel& model, Context& context, std::optional<Recipe> recipe,
                     const Options& options)
    : generator_(model, context, std::move(recipe), {.max_texts = options.max_batch, .vocab = options.vocab}),
      options_(options),
      thread_([this] { run(); }) {}

Scheduler::~Scheduler() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

std::shared_ptr<Completion> Scheduler::submit(std::vector<GenerationRequest> texts) {
  auto completion = std::make_shared<Completion>(std::move(texts));
  {
    const std::lock_guard lock(mutex_);
    // Requests that find a free place wait too, until the next step.
    const std::int64_t room = options_.queue + options_.max_batch - texts_;
    if (static_cast<std::int64_t>(waiting_.size()) >= room) return nullptr;
    waiting_.push_back({completion, 0});
  }
  changed_.notify_all();
  return completion;
}

Scheduler::Load Scheduler::load() {
  const std::lock_guard lock(mutex_);
  return {texts_, static_cast<std::int64_t>(waiting_.size())};
}

void Scheduler::drop_unwanted() {
  for (auto at = running_.begin(); at != running_.end();) {
    const bool wanted = at->second.completion->wanted(at->second.text);
    if (!wanted) generator_.leave(at->first);
    at = wanted ? std::next(at) : running_.erase(at);
  }
}

/// Needs the lock.
void Scheduler::admit() {
  for (auto at = waiting_.begin(); at != waiting_.end();) {
    Completion& completion = *at->completion;
    for (; at->next < completion.texts_.size(); ++at->next) {
      if (!completion.wanted(at->next)) continue;
      if (generator_.full()) break;
      GenerationEvent refused;
      try {
        const std::uint64_t id = generator_.join(std::move(completion.texts_[at->next]));
        running_.emplace(id, Running{at->completion, at->next});
      } catch (const std::exception&) {  // no memory for its cache, say
        refused.finish = Finish::failed;
        refused.failure = std::current_exception();
        completion.deliver({at->next, std::move(refused)});
      }
    }
    at = at->next == completion.texts_.size() ? waiting_.erase(at) : std::next(at);
  }
  texts_ = generator_.texts();
}

void Scheduler::step() {
  std::vector<GenerationEvent> events;
  try {
    events = generator_.step();
  } catch (const std::exception&) {
    // The forward pass itself failed: for every text in it.
    for (const auto& [id, running] : running_) {
      GenerationEvent& event = events.emplace_back();
      event.id = id;
      event.finish = Finish::failed;
      event.failure = std::current_exception();
      generator_.leave(id);
    }
  }
  for (GenerationEvent& event : events) {
    const auto found = running_.find(event.id);
    const Running running = found->second;
    if (event.finish != Finish::none) running_.erase(found);
    running.completion->deliver({running.text, std::move(event)});
  }
}

void Scheduler::run() {
  while (true) {
    {
      std::unique_lock lock(mutex_);
      texts_ = generator_.texts();
      changed_.wait(lock, [&] { return stopping_ || !waiting_.empty() || !running_.empty(); });
      if (stopping_) return;
      drop_unwanted();
      admit();
    }
    step();
  }
}

}  // namespace quaver
