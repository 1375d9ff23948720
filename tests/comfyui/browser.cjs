// Drives ComfyUI's real front end in a headless Chromium. Takes one JSON argument, prints one JSON answer.
//   { base, chromium, look: {name: workflow file}, bare: the same, vue: the same, screenshots: folder or null,
//     warn: {file, node, values, screenshot}, check: screenshot, run: {pack, name, folder} or null }
// The answer's version is the page's own, of comfyui-frontend-package.
// look: each workflow is loaded; the answer holds its missing node types, links lost, and the prompt made of it.
// bare: what the page says of a workflow whose models are missing. vue: its nodes that cover one another in Nodes 2.0.
// warn: what a node shows of its warnings, when the workflow was run with each of some values of its first widget.
// check: what MagiHuman Check shows once it ran, on the canvas and in Nodes 2.0. screenshot: its path, or "".
// run: the workflow is opened from the template dialog (of comfyui-workflow-templates) and queued with the button; the
// answer holds what the history says, and the size and length of the video that the page shows.
const { readFileSync } = require('node:fs')
const { chromium } = require(process.env.PLAYWRIGHT_CORE)
const job = JSON.parse(process.argv[2])
const ARGS = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
  '--disable-component-update', '--disable-sync', '--autoplay-policy=no-user-gesture-required']
// A fresh profile misses these, and what the pack does not make is not its to answer for.
const EXPECTED = /user\.css|userdata|comfy\.templates|workflow_templates|graph accessed before|Content Security Policy|favicon|index\.json|404/

async function open() {
  const settings = { 'Comfy.TutorialCompleted': true, 'Comfy.Locale': 'en', 'Comfy.Minimap.Visible': false,
    'LiteGraph.Canvas.MinFontSizeForLOD': 0, 'Comfy.Workflow.ShowMissingModelsWarning': true }
  await fetch(job.base + '/api/settings', { method: 'POST', headers: { 'Content-Type': 'application/json' },
    body: JSON.stringify(settings) })
  const browser = await chromium.launch({ executablePath: job.chromium, headless: true, args: ARGS })
  const page = await browser.newPage({ viewport: { width: 2400, height: 1350 } })
  page.setDefaultTimeout(120000)
  const errors = []
  page.on('console', message => {
    const text = `${message.text()} ${message.location().url}`
    if (message.type() === 'error' && !EXPECTED.test(text)) errors.push(text.slice(0, 500))
  })
  page.on('pageerror', error => errors.push(String(error).slice(0, 500)))
  await page.goto(job.base, { waitUntil: 'domcontentloaded' })
  await page.waitForFunction(() => window.app?.graph && window.LiteGraph?.registered_node_types?.MagiHumanSampler)
  await page.waitForTimeout(1000)
  return { browser, page, errors }
}

// Everything of the graph into view; returns the rectangle it covers on the page.
const fit = page => page.evaluate(async () => {
  const { graph, canvas } = window.app
  const boxes = [...graph.nodes, ...graph.groups].map(({ pos: [x, y], size: [w, h] }) => [x, y - 30, x + w, y + h])
  const [left, top] = [0, 1].map(i => Math.min(...boxes.map(box => box[i])))
  const [width, height] = [Math.max(...boxes.map(box => box[2])) - left, Math.max(...boxes.map(box => box[3])) - top]
  const [x, y] = [90, 110]
  const scale = Math.min(1, (window.innerWidth - 120) / width, (window.innerHeight - 190) / height)
  canvas.ds.scale = scale
  canvas.ds.offset = [x / scale - left, y / scale - top]
  graph.setDirtyCanvas(true, true)
  await new Promise(done => setTimeout(done, 1200))
  return { x: x - 8, y: y - 8, width: width * scale + 16, height: height * scale + 16 }
})

const load = (page, name, workflow) => page.evaluate(
  ([workflow, name]) => window.app.loadGraphData(workflow, true, true, name), [workflow, name])

const missing = page => page.evaluate(() => window.app.graph.nodes
  .filter(node => !window.LiteGraph.registered_node_types[node.type]).map(node => node.type))

// Nodes that lie on one another, titles included.
const overlaps = page => page.evaluate(() => {
  const { nodes } = window.app.graph
  const meet = (a, b, i) => a.pos[i] - 30 * i < b.pos[i] + b.size[i] && b.pos[i] - 30 * i < a.pos[i] + a.size[i]
  return nodes.flatMap((a, n) => nodes.slice(n + 1).filter(b => meet(a, b, 0) && meet(a, b, 1))
    .map(b => [a.title, b.title]))
})

async function look(page, name, file) {
  await load(page, name, JSON.parse(readFileSync(file, 'utf8')))
  await page.waitForTimeout(800)
  const answer = { missing: await missing(page), overlaps: await overlaps(page) }
  answer.links = await page.evaluate(() => window.app.graph.links.size ?? Object.keys(window.app.graph.links).length)
  answer.prompt = await page.evaluate(async () => (await window.app.graphToPrompt()).output)
  if (job.screenshots) {
    const clip = await fit(page)
    await page.screenshot({ path: `${job.screenshots}/${name}.png`, clip })
  }
  return answer
}

// What the page says of a workflow none of whose models are there, as a fresh user sees it.
async function bare(page, name, file) {
  await load(page, name, JSON.parse(readFileSync(file, 'utf8')))
  await page.getByText('View details').first().click()
  await page.waitForTimeout(1000)
  if (job.screenshots) await page.screenshot({ path: `${job.screenshots}/${name}_bare.png` })
  return page.evaluate(() => document.body.innerText)
}

// Nodes that cover one another in Nodes 2.0, with all that hangs below them, such as a footer where a file is missing.
async function vue(page, name, file) {
  await load(page, name, JSON.parse(readFileSync(file, 'utf8')))
  await page.waitForTimeout(2000)
  if (job.screenshots) await page.screenshot({ path: `${job.screenshots}/${name}_vue.png` })
  return page.evaluate(() => {
    const boxes = [...document.querySelectorAll('[data-node-id]')].filter(element => !element.parentElement.closest('[data-node-id]'))
      .map(element => {
        const { left, top, right } = element.getBoundingClientRect()
        const bottom = Math.max(...[element, ...element.querySelectorAll('*')].map(part => part.getBoundingClientRect().bottom))
        return { title: window.app.graph.getNodeById(element.dataset.nodeId).title, left, top, right, bottom }
      })
    const meet = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom
    return { nodes: boxes.length, overlaps: boxes.flatMap((a, n) => boxes.slice(n + 1).filter(b => meet(a, b)).map(b => [a.title, b.title])) }
  })
}

async function warn(page, { file, node, values, screenshot }) {
  await load(page, 'warn', JSON.parse(readFileSync(file, 'utf8')))
  const shown = []
  for (const value of values) {
    shown.push(await page.evaluate(async ([type, value, before]) => {
      const node = window.app.graph.nodes.find(node => node.type === type)
      node.widgets[0].value = value
      await window.app.queuePrompt(0)
      const text = () => node.widgets.find(widget => widget.name === '$$node-text-preview')?.value
      for (let i = 0; i < 600 && text() === before; i++) await new Promise(done => setTimeout(done, 100))
      await window.app.api.interrupt()  // what comes after the node is not waited for
      return text()
    }, [node, value, shown.at(-1)]))
    if (screenshot && shown.length === 1) { await fit(page); await page.screenshot({ path: screenshot }) }
  }
  return shown
}

// The text that stands on the node, as its widget has it and as Nodes 2.0 draws it.
async function check(page, screenshot) {
  const widget = await page.evaluate(async () => {
    await window.app.loadGraphData({ version: 0.4, nodes: [], links: [] }, true, true, 'check')
    const node = window.LiteGraph.createNode('MagiHumanCheck')
    node.pos = [100, 100]
    window.app.graph.add(node)
    await window.app.queuePrompt(0)
    const text = () => node.widgets.find(widget => widget.name === '$$node-text-preview')?.value
    for (let i = 0; i < 600 && !text(); i++) await new Promise(done => setTimeout(done, 100))
    return text() ?? ''
  })
  await fit(page)
  const drawn = () => page.evaluate(() => document.body.innerText)
  const canvas = await drawn()
  if (screenshot) await page.screenshot({ path: screenshot })
  await page.evaluate(() => window.app.extensionManager.setting.set('Comfy.VueNodes.Enabled', true))
  await page.waitForTimeout(1500)
  const vue = await drawn()
  if (screenshot) await page.screenshot({ path: screenshot.replace('.png', '_vue.png') })
  await page.evaluate(() => window.app.extensionManager.setting.set('Comfy.VueNodes.Enabled', false))
  return { widget, canvas, vue }
}

async function run(page, { pack, name, folder }) {
  const answer = {}
  await page.evaluate(() => window.app.extensionManager.command.execute('Comfy.BrowseTemplates'))
  await page.getByText(pack, { exact: true }).first().click()
  await page.waitForTimeout(1500)
  await page.screenshot({ path: `${folder}/templates.png` })
  await page.getByText(name, { exact: true }).first().click()
  await page.waitForFunction(() => window.app.graph.nodes.some(node => node.type === 'MagiHumanSampler'))
  await page.waitForTimeout(1000)
  answer.missing = await missing(page)
  const sent = page.waitForResponse(r => r.url().endsWith('/prompt') && r.request().method() === 'POST')
  await page.getByTestId('queue-button').first().click()
  const response = await sent
  answer.status = response.status()
  const id = (await response.json()).prompt_id
  let history
  for (let i = 0; i < 2000 && !history; i++) {  // a busy machine takes minutes
    history = (await (await fetch(`${job.base}/history/${id}`)).json())[id]
    if (!history) await page.waitForTimeout(250)
  }
  answer.end = history?.status?.status_str
  answer.outputs = history?.outputs
  await page.waitForFunction(() => [...document.querySelectorAll('video')].some(v => v.readyState >= 2))
  answer.videos = await page.evaluate(() => [...document.querySelectorAll('video')]
    .map(v => ({ seconds: v.duration, width: v.videoWidth, height: v.videoHeight })))
  await fit(page)
  // Somewhere in the video, not at its first frame.
  await page.evaluate(() => document.querySelectorAll('video').forEach(v => { v.pause(); v.currentTime = v.duration / 2 }))
  await page.waitForTimeout(1500)
  await page.screenshot({ path: `${folder}/run.png` })
  return answer
}

async function main() {
  const { browser, page, errors } = await open()
  const version = await page.evaluate(() => window.__COMFYUI_FRONTEND_VERSION__)
  const answer = { looked: {}, errors, version }
  try {
    for (const [name, file] of Object.entries(job.look ?? {})) answer.looked[name] = await look(page, name, file)
    for (const [name, file] of Object.entries(job.bare ?? {})) answer.bare = await bare(page, name, file)
    if (job.vue) {
      await page.setViewportSize({ width: 1920, height: 1080 })
      await page.evaluate(() => window.app.extensionManager.setting.set('Comfy.VueNodes.Enabled', true))
      await page.waitForTimeout(500)
      answer.vue = {}
      for (const [name, file] of Object.entries(job.vue)) answer.vue[name] = await vue(page, name, file)
    }
    if (job.warn) answer.warn = await warn(page, job.warn)
    if (job.check !== undefined) answer.check = await check(page, job.check)
    if (job.run) answer.run = await run(page, job.run)
  } finally {
    await browser.close()
  }
  process.stdout.write(JSON.stringify(answer))
}

main().catch(error => { process.stderr.write(`${error.stack}\n`); process.exit(1) })
